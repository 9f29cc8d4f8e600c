"""The gateway: an OpenAI-compatible server around an engine that is embedded in its process."""
