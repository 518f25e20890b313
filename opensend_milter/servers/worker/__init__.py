"""The threads that announce, deliver, take up feedback and tell webhooks."""
