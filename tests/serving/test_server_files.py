"""The files of serving/ are what the server's own messages say they should be."""

import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.conftest import ROOT


def test_models_config_is_a_model_server_config():
    text = (ROOT / "serving" / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("digits", "/models/digits")


def test_compose_mounts_every_file_it_names():
    folder = ROOT / "serving"
    (service,) = yaml.safe_load((folder / "compose.yaml").read_text())[
        "services"
    ].values()
    assert ".:/config:ro" in service["volumes"]
    named = [part.split("=")[1] for part in service["command"] if "_file=" in part]
    assert len(named) == 3
    for path in named:
        assert (folder / path.removeprefix("/config/")).is_file()
    assert {port.rpartition(":")[2] for port in service["ports"]} == {"8500", "8501"}
