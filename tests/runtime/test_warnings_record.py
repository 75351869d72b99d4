import logging

from muwa.runtime.warnings_record import recorded_warnings


def test_warnings_of_muwa_are_kept_once_and_others_are_not():
    with recorded_warnings() as warned:
        for _ in range(2):
            logging.getLogger("muwa.models").warning("of %d values", 3)
        logging.getLogger("muwa.report").info("no warning")
        logging.getLogger("other").warning("not ours")
        assert warned == ["of 3 values"]
    logging.getLogger("muwa.models").warning("after")
    assert warned == ["of 3 values"]
