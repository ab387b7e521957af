"""Comparisons: arms, epsilons and seeds; tables."""
