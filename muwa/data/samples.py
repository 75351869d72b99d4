def match_names(text, names):
    import re
    fold = lambda s: re.sub(r"[\W_]+", " ", s).casefold().strip()
    return [n for n in names if f" {fold(n)} " in f" {fold(text)} "]
