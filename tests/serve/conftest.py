"""One tiny real model for all tests of the service, made once a session and saved."""

import shutil

import pytest
from model_helper import make_engine

import hybridrec as hr


@pytest.fixture(scope="session")
def model_folder(dataset, tiny_encoder, tmp_path_factory):
    """A saved model with its users' histories: 60 users u0.., 30 items i0... Only to be read."""
    folder = tmp_path_factory.mktemp("serve") / "model"
    make_engine(tiny_encoder).fit(dataset).save(folder, histories=True)
    return folder


@pytest.fixture
def own_folder(model_folder, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture(scope="session")
def loaded(model_folder):
    """The model as the service holds it; not to be changed."""
    from hybridrec.serve.versions.models import load_model

    return load_model(model_folder)


@pytest.fixture(scope="session")
def engine(model_folder):
    """The same model as an application would embed it, with its users' histories."""
    return hr.load(model_folder)


@pytest.fixture(scope="session")
def save_another():
    """Saves a second version beside the first in a folder, quickly: with ``retire`` retired."""

    def save(folder, retire=("i0",)):
        model = hr.load(folder)
        model.retire_items(list(retire))
        return model.save(folder, histories=True)

    return save
