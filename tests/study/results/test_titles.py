"""What methods and networks are called."""

from study.results import titles


def test_methods_have_their_titles_and_labels():
    assert titles.method_title("surprise") == "Label surprise (k-NN)"
    assert titles.labels_used("oracle") == "class, identity"
    assert titles.labels_used("erm") == "none"
    assert titles.labels_used("erm", none="none beyond the task's") == "none beyond the task's"
    assert titles.uses_identities("oracle") and not titles.uses_identities("cid")
    assert titles.without_identities(["erm", "cid", "oracle", "cid", "jtt"]) == ["cid", "jtt"]


def test_a_method_that_the_registry_lacks_is_called_by_its_key():
    assert titles.method_title("mine") == "mine" and titles.labels_used("mine") == "class"


def test_figures_mark_the_methods_that_use_identities():
    assert titles.marked_title("oracle") == "Oracle (true identities)"
    assert titles.marked_title("cid") == "CID" and titles.marked_title("mine") == "mine"


def test_a_network_that_is_a_file_is_called_by_the_file():
    assert titles.network_title("nets/a.onnx@12") == "a.onnx"
    assert titles.network_title("dlib-resnet") == "dlib-resnet"
