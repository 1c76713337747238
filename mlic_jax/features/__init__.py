"""What a frozen backbone says of photos, computed once and kept: a run then costs only its head."""
