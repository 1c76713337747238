"""Operations that models are made of, each with its gradient where XLA's is slow."""
