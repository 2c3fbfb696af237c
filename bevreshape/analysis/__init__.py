"""Instruments for any view transformer: cost, learned weights, and robustness."""
