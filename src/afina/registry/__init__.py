"""The index of what a home holds: models, datasets, runs. The folders are the truth; this can be rebuilt from them."""
