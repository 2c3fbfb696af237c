"""Configuration: composing, checking, building. Hydra and OmegaConf are imported here alone."""
