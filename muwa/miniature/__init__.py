"""The miniature world: a renderer, the data it draws in the real formats, and a CLIP trained on it."""
