"""The nouns: frozen values, one file each."""

from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.certificate import Certificate, Difference, Trial, Verdict
from quicksilver.nouns.engine import Burst, Decoder, Endpoint, Engine, Request, Settings, Speculation
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.hardware import Hardware, Price
from quicksilver.nouns.model import Model, ModelFacts
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.result import Candidate, Lengths, Result
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Cost, Figure, Latency, Quality, Score, Speed
from quicksilver.nouns.technique import Choices, Step, Technique
from quicksilver.nouns.workload import Message, Prompt, Split, Workload

__all__ = [
    "Artifact", "Burst", "Candidate", "Certificate", "Choices", "Cost", "Decoder", "Difference", "Endpoint", "Engine", "Figure",
    "Goal", "Hardware",
    "Latency", "Lengths", "Message", "Model", "ModelFacts", "Price", "Prompt", "Quality", "Recipe", "Request", "Result", "Sample",
    "Score", "Settings", "Speculation", "Speed", "Split", "Step", "Technique", "Trial", "Verdict", "Workload",
]  # fmt: skip
