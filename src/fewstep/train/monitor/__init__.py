"""What a run tells of itself: metrics, health figures, previews."""
