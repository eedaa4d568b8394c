// The scalar functions of elementwise expressions; mkc/ops/_functions.py says what each means.
#pragma once

#include <mkc/platform.cuh>

namespace mkc::fn {

#define MKC_UNARY(name, body)        \
  struct name {                      \
    template <class A>               \
    MKC_DEVICE static auto of(A a) { \
      return body;                   \
    }                                \
  };
#define MKC_BINARY(name, body)            \
  struct name {                           \
    template <class A, class B>           \
    MKC_DEVICE static auto of(A a, B b) { \
      return body;                        \
    }                                     \
  };
// the same, in float whatever the operands are
#define MKC_REAL(name, body)                  \
  struct name {                               \
    template <class A>                        \
    MKC_DEVICE static float of(A value) {     \
      const float a = static_cast<float>(value); \
      return body;                            \
    }                                         \
  };

MKC_BINARY(add, a + b)
MKC_BINARY(sub, a - b)
MKC_BINARY(mul, a * b)
MKC_BINARY(div, static_cast<float>(a) / static_cast<float>(b))
MKC_BINARY(floor_div, a / b - (a % b != 0 && (a < 0) != (b < 0)))  // of integers; rounded down, as Python does
MKC_BINARY(mod, a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : B(0)))
MKC_UNARY(neg, -a)
MKC_UNARY(abs, a < A(0) ? -a : (a == A(0) ? A(0) : a))
MKC_UNARY(square, a* a)
MKC_BINARY(pow, mkc::pow(static_cast<float>(a), static_cast<float>(b)))
MKC_REAL(reciprocal, 1.0f / a)
MKC_REAL(sqrt, mkc::sqrt(a))
MKC_REAL(rsqrt, mkc::rsqrt(a))
MKC_REAL(exp, mkc::exp(a))
MKC_REAL(log, mkc::log(a))
MKC_REAL(tanh, mkc::tanh(a))
MKC_REAL(erf, mkc::erf(a))
MKC_REAL(sigmoid, mkc::inverse(1.0f + mkc::exp(-a)))
MKC_REAL(silu, a * mkc::inverse(1.0f + mkc::exp(-a)))
MKC_UNARY(relu, a < A(0) ? A(0) : a)  // NaN stays NaN
MKC_REAL(gelu, 0.5f * a * (1.0f + mkc::erf(a * 0.70710678118654752f)))
MKC_REAL(gelu_tanh, 0.5f * a * (1.0f + mkc::tanh(0.79788456080286536f * (a + 0.044715f * a * a * a))))
MKC_REAL(floor, mkc::floor(a))
MKC_REAL(ceil, mkc::ceil(a))
MKC_BINARY(maximum, a != a ? a : (a < b || b != b ? b : a))  // NaN wins, as in torch
MKC_BINARY(minimum, a != a ? a : (b < a || b != b ? b : a))
MKC_BINARY(eq, a == b)
MKC_BINARY(ne, a != b)
MKC_BINARY(lt, a < b)
MKC_BINARY(le, a <= b)
MKC_BINARY(gt, a > b)
MKC_BINARY(ge, a >= b)
MKC_BINARY(bit_and, a& b)
MKC_BINARY(bit_or, a | b)
MKC_BINARY(bit_xor, a ^ b)
MKC_BINARY(logical_and, a != A(0) && b != B(0))
MKC_BINARY(logical_or, a != A(0) || b != B(0))
MKC_UNARY(logical_not, a == A(0))
MKC_REAL(to_float32, a)
MKC_UNARY(to_int64, static_cast<int64>(a))
MKC_UNARY(to_int32, static_cast<int32>(a))
MKC_UNARY(to_uint8, static_cast<uint8>(a))
MKC_UNARY(to_bool, a != A(0))

struct where {
  template <class C, class A, class B>
  MKC_DEVICE static auto of(C c, A a, B b) {
    return c ? a : b;
  }
};
template <class Half>
struct rounded {
  template <class A>
  MKC_DEVICE static float of(A a) {
    Half half;
    narrow(static_cast<float>(a), half);
    return widen(half);
  }
};
using to_bfloat16 = rounded<bf16>;
using to_float16 = rounded<f16>;

// Angles up to 2^31 are brought to [-pi/4, pi/4] in double, where two words of pi/2 leave an error far below a float's.
struct Angle {
  float r;
  int quadrant;
};
MKC_DEVICE Angle reduce_angle(float x) {
  const double n = mkc::rint(static_cast<double>(x) * 0.63661977236758134308);
  double r = mkc::fma(-n, 1.57079632679489655800, static_cast<double>(x));
  r = mkc::fma(-n, 6.12323399573676603587e-17, r);
  return {static_cast<float>(r), static_cast<int>(static_cast<int64>(n) & 3)};
}
// Cephes sinf and cosf polynomials on [-pi/4, pi/4]; odd quadrants swap them, the upper two negate
MKC_DEVICE float sin_quadrant(float r, int quadrant) {
  const float z = r * r;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const float c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const float v = quadrant & 1 ? c : s;
  return quadrant & 2 ? -v : v;
}
struct sin {
  template <class A>
  MKC_DEVICE static float of(A a) {
    const Angle angle = reduce_angle(static_cast<float>(a));
    return sin_quadrant(angle.r, angle.quadrant);
  }
};
struct cos {
  template <class A>
  MKC_DEVICE static float of(A a) {
    const Angle angle = reduce_angle(static_cast<float>(a));
    return sin_quadrant(angle.r, (angle.quadrant + 1) & 3);
  }
};

#undef MKC_UNARY
#undef MKC_BINARY
#undef MKC_REAL

}  // namespace mkc::fn

namespace mkc::fold {  // what team_reduce folds with

struct sum {
  template <class T>
  MKC_DEVICE static T identity() {
    return T(0);
  }
  template <class T>
  MKC_DEVICE static T of(T a, T b) {
    return a + b;
  }
};
struct maximum {
  template <class T>
  MKC_DEVICE static T identity() {
    if constexpr (T(0.5f) != T(0)) return -kInf;
    else return T(1) << (sizeof(T) * 8 - 1);
  }
  template <class T>
  MKC_DEVICE static T of(T a, T b) {
    return fn::maximum::of(a, b);
  }
};
struct minimum {
  template <class T>
  MKC_DEVICE static T identity() {
    if constexpr (T(0.5f) != T(0)) return kInf;
    else return ~(T(1) << (sizeof(T) * 8 - 1));
  }
  template <class T>
  MKC_DEVICE static T of(T a, T b) {
    return fn::minimum::of(a, b);
  }
};

}  // namespace mkc::fold
