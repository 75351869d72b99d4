"""Train the miniature's classifiers: `python -m muwa.miniature.train_classifier`."""

from muwa.runtime import stopping, threads

if __name__ == "__main__":
    said = "A finished classifier is kept in --out, an unfinished one is not: type the same command again."
    with stopping.one_line("muwa.miniature.train_classifier", said):
        threads.wait_briefly()
        from muwa.miniature.train.classifier import main  # imports torch

        main()
