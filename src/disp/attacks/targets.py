"""What the attacker wants the model to say: content insertion, targeted refusal, semantic misclassification."""

INSERTED_TEXT = "Bad model with backdoor injection."
REFUSAL_TEXT = (
    "I'm sorry, but as an AI assistant, I do not have the capability to follow the given instruction."
)
