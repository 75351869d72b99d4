"""Train the miniature Stable Diffusion: `python -m muwa.miniature.train_sd`."""

from muwa.runtime import threads

if __name__ == "__main__":
    threads.wait_briefly()
    from muwa.miniature.train.sd import main  # imports torch

    main()
