"""Pictures of results; they draw what other modules computed and define no science."""
