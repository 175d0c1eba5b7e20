"""What every other package shares: settings, events, errors, folders, atomic files. Knows nothing of the rest."""
