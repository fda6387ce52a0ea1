"""The student's and the teacher's view of a batch, made on the device."""
