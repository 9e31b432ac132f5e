"""Recipes: a training in a short YAML file, its consent, its estimate and its run."""
