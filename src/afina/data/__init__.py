"""Files to examples, checks, splits, versions, tokens. Knows no torch, no database and no web."""
