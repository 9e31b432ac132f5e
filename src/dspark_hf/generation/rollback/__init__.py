"""How rejected tokens leave a cache."""
