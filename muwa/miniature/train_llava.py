"""Train the miniature LLaVA: `python -m muwa.miniature.train_llava`."""

from muwa.runtime import threads

if __name__ == "__main__":
    threads.wait_briefly()
    from muwa.miniature.train.llava import main  # imports torch

    main()
