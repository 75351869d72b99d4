from muwa.report.status import begin_run, end_run, status_of


def test_a_status_is_kept_with_its_reason_until_the_run_begins_again(tmp_path):
    assert status_of(tmp_path) == ("", "")
    end_run(tmp_path, "done")
    assert status_of(tmp_path) == ("done", "")
    end_run(tmp_path, "failed", "layer: got x\nmore")
    assert status_of(tmp_path) == ("failed", "layer: got x")
    begin_run(tmp_path)
    begin_run(tmp_path)
    assert status_of(tmp_path) == ("", "")


def test_a_reason_has_no_secret(tmp_path):
    end_run(tmp_path, "failed", "https://me:pw@host/a.tar?Signature=abc is gone")
    assert status_of(tmp_path)[1] == "https://host/a.tar?*** is gone"
