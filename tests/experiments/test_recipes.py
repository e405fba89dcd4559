"""Recipes: those that come along are complete and can be read; a mistake in one is named."""

import dataclasses

import pytest

from art_rs_plugin.experiments import datasets, models, recipes
from art_rs_plugin.training import OBJECTIVES


@pytest.mark.parametrize("name", recipes.available())
def test_recipes_that_come_along_say_what_they_are_for(name):
    recipe = recipes.load(name)
    assert recipe.data in datasets.DATASETS
    assert recipe.model in models.MODELS
    assert recipe.objective().name == recipe.method
    for option, value in recipe.options.items():
        assert getattr(recipe.objective(), option) == value


def test_the_papers_recipe_for_cifar10_is_the_default():
    assert dataclasses.replace(recipes.load("cifar10"), data=None, model=None) == recipes.Recipe()


def test_every_data_set_of_the_paper_has_one():
    assert {recipes.load(name).data for name in recipes.available()} >= {"digits", "mnist", "cifar10", "imagenet"}


@pytest.mark.parametrize("method", OBJECTIVES)
def test_options_are_those_of_the_method(method):
    for name, (kind, default) in recipes.options_of(method).items():
        assert type(default) is kind
        changed = {bool: "True", int: "3", float: "0.5", str: str(default)}[kind]
        recipe = recipes.changed(recipes.Recipe(), method=method, options=[f"{name}={changed}"])
        assert repr(getattr(recipe.objective(), name)) == repr(kind(changed) if kind is not bool else True)


def test_a_file_of_ones_own_and_what_is_given_beside_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('data = "digits"\nmethod = "macer"\nlr = 0.05\n[options]\ndraws = 4\nbeta = 2.0\n')
    recipe = recipes.load(str(path))
    assert (recipe.data, recipe.method, recipe.lr, recipe.options) == (
        "digits",
        "macer",
        0.05,
        {"draws": 4, "beta": 2.0},
    )
    changed = recipes.changed(recipe, options=["beta=3"], epochs=7, lr=None)
    assert (changed.options, changed.epochs, changed.lr) == ({"draws": 4, "beta": 3.0}, 7, 0.05)
    assert recipes.changed(recipe, method="gaussian").options == {}


def test_images_stay_within_0_and_1_where_a_method_moves_them():
    assert recipes.Recipe(method="smoothadv").objective().clip_values == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 0", "`epochs` must be at least 1, got 0"),
        ("epoch = 9", "`key of a recipe` must be one of .*'epochs'.*, got 'epoch'"),
        ('method = "trades"', "`method` must be one of 'gaussian', .*, got 'trades'"),
        ('method = "macer"\n[options]\neps = 1.0', "`option of macer` must be one of 'weight', .*, got 'eps'"),
        ('method = "macer"\n[options]\ngamma = -1.0', "`gamma` must be a finite number above 0, got -1.0"),
        ('schedule = "linear"', "`schedule` must be one of 'step', 'cosine', got 'linear'"),
        ('precision = "fp16"', "`precision` must be one of 'fp32', 'bf16', got 'fp16'"),
        ("average = 1.5", r"`average` must be in \(0, 1\), got 1.5"),
        ("held_out = -1", "`held_out` must be at least 0, got -1"),
        ("validate_every = 0", "`validate_every` must be at least 1, got 0"),
        ("momentum = -1", "`momentum` must be a finite number of at least 0, got -1"),
        ('weight_decay = "a"', "`weight_decay` must be a number, got 'a'"),
        ("clip = 0", "`clip` must be a finite number above 0, got 0"),
        ("data = 3", "`data` must be a name, got 3"),
        ("options = 3", "`options` must be a table of the method's options, got 3"),
        ('lr = "fast"', "`lr` must be a number, got 'fast'"),
        ("lr = ", "Invalid value"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"recipe `{path}`: .*{message}"):
        recipes.load(str(path))


def test_there_must_be_such_a_recipe():
    with pytest.raises(FileNotFoundError, match="recipe `cifar` must be a file, or one of cifar10, "):
        recipes.load("cifar")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("eps", "`--option` must be name=value, got 'eps'"),
        ("radius=1", "`option of smoothadv` must be one of 'eps', .*, got 'radius'"),
        ("eps=far", "`eps` must be of type float, got 'far'"),
        ("steps=2.5", "`steps` must be of type int, got '2.5'"),
        ("all_draws=2", "`all_draws` must be of type bool, got '2'"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(word, message):
    with pytest.raises(ValueError, match=message):
        recipes.parsed("smoothadv", [word])
