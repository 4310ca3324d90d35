"""The unit a user fills in: its fields, its JSON forms, its infotext and its pictures. No torch, no gradio."""
