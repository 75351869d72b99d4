"""Train the miniature's classifiers: `python -m muwa.miniature.train_classifier`."""

from muwa.runtime import threads

if __name__ == "__main__":
    threads.wait_briefly()
    from muwa.miniature.train.classifier import main  # imports torch

    main()
