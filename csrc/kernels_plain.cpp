// The loops for any processor; setup.py gives this file its compiler options.
#define CBAM_ISA plain
#include "kernels_body.h"
