"""`dspark bench`: figures that can be made again."""
