"""muwa: make a vision-language model forget one thing by editing one layer with one gradient, and prove it."""
