"""Training or evaluation mode for a while: every module's own setting comes back."""

import pytest
import torch

from art_rs_plugin.votes import mode


class TestMode:
    @pytest.fixture
    def model(self):
        """In training mode, but for a frozen normalisation and what is inside a branch set to evaluation."""
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.ReLU())
        )
        model[1].eval()
        model[2][0].eval()
        return model

    @staticmethod
    def flags(model):
        return [module.training for module in model.modules()]

    @pytest.mark.parametrize("training", [False, True])
    def test_sets_all_and_restores_each(self, model, training):
        before = self.flags(model)
        assert before == [True, True, False, True, False, True]
        with mode(model, training=training):
            assert self.flags(model) == [training] * 6
        assert self.flags(model) == before

    def test_restores_after_an_error(self, model):
        before = self.flags(model)

        def fail():
            with mode(model, training=False):
                model[2].train()
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert self.flags(model) == before
