"""The 15 common corruptions of Hendrycks and Dietterich, batched and seeded by image."""
