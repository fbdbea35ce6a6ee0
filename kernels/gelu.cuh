// The GELUs of towers: values, fused into linear, and derivatives.
#pragma once

// The exact one, x Phi(x), and x sigmoid(1.702 x). NaN stays NaN.
enum Gelu { GELU_EXACT = 0, GELU_QUICK = 1 };

__forceinline__ __device__ float gelu(float x) {
    return 0.5f * x * (1.f + erff(x * 0.70710678f));
}

__forceinline__ __device__ float gelu_slope(float x) {
    float phi = 0.5f * (1.f + erff(x * 0.70710678f));
    return fmaf(x * 0.39894228f, __expf(-0.5f * x * x), phi);
}

__forceinline__ __device__ float sigmoid_of_gelu(float x) { return 1.f / (1.f + __expf(-1.702f * x)); }

__forceinline__ __device__ float quick_gelu(float x) { return x * sigmoid_of_gelu(x); }

__forceinline__ __device__ float quick_gelu_slope(float x) {
    float s = sigmoid_of_gelu(x);
    return fmaf(1.702f * x, s * (1.f - s), s);
}
