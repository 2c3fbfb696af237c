"""Generate the synthetic world: streets drawn from a seed, with exact labels and known cameras, no download."""

from bevreshape.data.sources.synthetic.source import SyntheticScenes, SyntheticSource, World

__all__ = ["SyntheticScenes", "SyntheticSource", "World"]
