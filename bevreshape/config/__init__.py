"""Configuration: composing, checking, building. Only this package imports Hydra and OmegaConf."""
