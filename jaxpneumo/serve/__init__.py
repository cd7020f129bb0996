"""What talks to other programs: the DICOM listener, DICOMweb and the page."""
