"""What a run is worth: answers to held-out prompts, judged, with intervals."""
