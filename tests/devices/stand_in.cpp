// A device for PyTorch that is none: tensors of the key PrivateUse1 lie in the machine's memory, and what is computed
// with them is computed on the CPU. In the manner of PyTorch's own test of devices from elsewhere. It refuses what a
// device refuses: tensors of another device beside its own, generators that are not its own, and, where STAND_IN_FLOAT64
// is 0, float64.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

namespace {

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

// Memory.
struct HostMemory final : public c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* place = size ? std::malloc(size) : nullptr;
    return {place, place, &std::free, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t size) const override { default_copy_data(to, from, size); }
};
HostMemory memory;
REGISTER_ALLOCATOR(TYPE, &memory);

// One device, where everything is done at once: no stream and no event is waited for.
struct Guard final : public c10::impl::NoOpDeviceGuardImpl<TYPE> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, DEVICE);
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Random numbers: those of the CPU with the same seed, by generators that belong to the device.
struct StandInGenerator final : public at::CPUGeneratorImpl {
  StandInGenerator() : at::CPUGeneratorImpl(0), inner(at::detail::createCPUGenerator(0)) {
    device_ = DEVICE;
    key_set_ = KEYS;
  }
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  at::Generator inner;
};

struct Hooks final : public at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<StandInGenerator>(); }
};
const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

// Tensors.
c10::ScalarType allowed(std::optional<c10::ScalarType> wanted) {
  static const bool float64 = [] {
    const char* said = std::getenv("STAND_IN_FLOAT64");
    return said == nullptr || std::string(said) != "0";
  }();
  const auto type = wanted.value_or(c10::get_default_dtype_as_scalartype());
  TORCH_CHECK(float64 || type != c10::ScalarType::Double, "the stand-in has no float64");
  return type;
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, allowed(type), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, allowed(type));
}

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       at::TensorOptions().dtype(tensor.scalar_type()).device(c10::kCPU));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  if (to.numel()) on_cpu(to).copy_(on_cpu(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  if (to.sizes() != self.sizes()) at::native::resize_(to, self.sizes());
  return copy_from(self, to, false);
}

// Convolutions, which PyTorch leaves to devices to compute themselves.
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef output_padding, int64_t groups) {
  const auto shift = bias.has_value() && bias->defined() ? std::optional<at::Tensor>(on_cpu(*bias)) : std::nullopt;
  return at::convolution(on_cpu(input), on_cpu(weight), shift, stride, padding, dilation, transposed, output_padding,
                         groups)
      .contiguous()
      .to(DEVICE);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  const std::vector<int64_t> sizes{transposed ? weight.size(1) * groups : weight.size(0)};
  auto [a, b, c] = at::convolution_backward(on_cpu(gradient), on_cpu(input), on_cpu(weight), sizes, stride, padding,
                                            dilation, transposed, output_padding, groups, wanted);
  const auto back = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.contiguous().to(DEVICE) : tensor; };
  return {back(a), back(b), back(c)};
}

// Group norm, which PyTorch decomposes for other devices than its own in a way that needs contiguous tensors.
std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm(
    const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, int64_t images,
    int64_t channels, int64_t pixels, int64_t groups, double epsilon) {
  const auto here = [](const std::optional<at::Tensor>& tensor) {
    return tensor.has_value() && tensor->defined() ? std::optional<at::Tensor>(on_cpu(*tensor)) : std::nullopt;
  };
  auto [a, b, c] = at::native_group_norm(on_cpu(input).contiguous(), here(weight), here(bias), images, channels, pixels,
                                         groups, epsilon);
  return {a.to(DEVICE), b.to(DEVICE), c.to(DEVICE)};
}

// Everything else.
void require_own(const c10::OperatorHandle& op, const at::Tensor& tensor) {
  // As on any device, a number may lie elsewhere, and so may indices.
  const auto& name = op.schema().name();
  const bool takes_indices = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
  TORCH_CHECK(!tensor.defined() || tensor.device() == DEVICE || tensor.dim() == 0 || takes_indices, name,
              ": expected all tensors to be on the stand-in, found one on ", tensor.device());
}

void compute_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto arguments = op.schema().arguments().size();
  for (auto& value : torch::jit::last(*stack, arguments)) {
    if (value.isTensor()) {
      require_own(op, value.toTensor());
    } else if (value.isTensorList()) {
      for (const auto& tensor : value.toTensorVector()) require_own(op, tensor);
    }
  }
  for (size_t number = stack->size() - arguments; number < stack->size(); ++number) {
    auto& value = (*stack)[number];
    if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device() == DEVICE, "the stand-in has its own generators");
      value = static_cast<StandInGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
    }
  }
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("resize_", &at::native::resize_);
  library.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(&at::native::set_));
  library.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  library.impl("native_group_norm", &group_norm);
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
}
