"""What a run stands on: devices, processes, compiled programs, profiles, checkpoints."""
