"""Train the miniature LLaVA: `python -m muwa.miniature.train_llava`."""

from muwa.runtime import stopping, threads

if __name__ == "__main__":
    said = "Finished rounds are kept beside --out: type the same command again to go on."
    with stopping.one_line("muwa.miniature.train_llava", said):
        threads.wait_briefly()
        from muwa.miniature.train.llava import main  # imports torch

        main()
