"""The unit: its fields, its arguments, its infotext, its pictures and their store."""
