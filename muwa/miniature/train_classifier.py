"""Train the miniature's classifiers: `python -m muwa.miniature.train_classifier`."""

from muwa.miniature.train.classifier import main

if __name__ == "__main__":
    main()
