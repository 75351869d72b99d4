"""Train the miniature Stable Diffusion: `python -m muwa.miniature.train_sd`."""

from muwa.runtime import stopping, threads

if __name__ == "__main__":
    said = "The autoencoder and finished rounds are kept in --out: type the same command again to go on."
    with stopping.one_line("muwa.miniature.train_sd", said):
        threads.wait_briefly()
        from muwa.miniature.train.sd import main  # imports torch

        main()
