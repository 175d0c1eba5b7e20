"""Training and answering: the only package that imports torch. Knows no web and no database."""
