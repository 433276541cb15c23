"""How we are seen: HTTP in front of `ImageOps`. Thin: no rule stands here that a queue would not obey too."""
