"""The model card: the JSON inside a served file that says what the file is."""

from ase_bayesmlip.card.model_card import CARD_NAME, DAMAGE, FORMAT_VERSION, ModelCard, read_card

__all__ = ["CARD_NAME", "DAMAGE", "FORMAT_VERSION", "ModelCard", "read_card"]
