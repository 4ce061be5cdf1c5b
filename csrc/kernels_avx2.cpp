// The loops for AVX2, FMA and F16C; setup.py gives this file its compiler options.
#define CBAM_ISA avx2
#include "kernels_body.h"
