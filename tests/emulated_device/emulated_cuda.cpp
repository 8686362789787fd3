// An emulated CUDA device for CPU builds of PyTorch. Tensors report the device cuda:N; their memory is that of the host,
// and every operator runs on the CPU over the same memory, so numbers are real. Errors of a GPU are reproduced: tensors of
// different devices in one operator, a device ordinal that is not visible, synchronization while a graph is captured, an
// operator without a deterministic algorithm in deterministic mode. Convolutions and matmuls round fp32 inputs to TF32
// where PyTorch's settings allow it. New memory contains NaN. Streams are synchronous: races are not found.
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {
constexpr auto CUDA = c10::DeviceType::CUDA;
using Callback = void (*)(const char*, int64_t);

int visible_devices = 0;
thread_local int current_device = 0;
thread_local int64_t current_stream = 0;
Callback on_synchronization = nullptr;
bool capturing = false;
std::set<const void*> pinned;  // memory that is never freed

void report(const std::string& kind, int64_t bytes) {
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (", kind, ")");
  if (on_synchronization) on_synchronization(kind.c_str(), bytes);
}

int checked_ordinal(c10::Device d) {
  int index = d.index() < 0 ? current_device : d.index();
  TORCH_CHECK(index < visible_devices, "CUDA error: invalid device ordinal (", index, " of ", visible_devices, ")");
  return index;
}

// 1. Device, streams and events
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device d) const override {
    c10::Device old(CUDA, current_device);
    current_device = d.index() < 0 ? 0 : d.index();
    return old;
  }
  c10::Device getDevice() const override { return {CUDA, (c10::DeviceIndex)current_device}; }
  void setDevice(c10::Device d) const override { exchangeDevice(d); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { exchangeDevice(d); }
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::UNSAFE, d, current_stream); }
  c10::Stream getDefaultStream(c10::Device d) const override { return c10::Stream(c10::Stream::UNSAFE, d, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override { return c10::Stream(c10::Stream::UNSAFE, d, 1); }
  c10::Stream getNewStream(c10::Device d, int) const override { return c10::Stream(c10::Stream::UNSAFE, d, 1); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    auto old = getStream(s.device());
    current_stream = s.id();
    return old;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return visible_devices; }
  void record(void** e, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override { *e = (void*)1; }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

// 2. Memory
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = nullptr;
    if (n && posix_memalign(&p, 64, n)) throw std::bad_alloc();
    if (p) memset(p, 0xff, n);
    return {p, p, &std::free, c10::Device(CUDA, current_device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t n) const override { memcpy(to, from, n); }
};
Allocator allocator;
const c10::DispatchKeySet on_device(c10::DispatchKey::CUDA);

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  auto d = c10::device_or_default(device);
  c10::OptionalDeviceGuard guard(c10::Device(CUDA, checked_ordinal(d)));
  return at::detail::empty_generic(size, &allocator, on_device, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(c10::Device(CUDA, checked_ordinal(c10::device_or_default(device))));
  return at::detail::empty_strided_generic(size, stride, &allocator, on_device, c10::dtype_or_default(dtype));
}

c10::Storage shared_storage(const at::Tensor& t, c10::Device d, c10::Allocator* owner) {
  auto* keep = new at::Tensor(t.detach());
  c10::DataPtr data(t.storage().mutable_data(), keep, [](void* k) { delete static_cast<at::Tensor*>(k); }, d);
  return c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), owner, owner == &allocator);
}

at::Tensor with_storage(const at::Tensor& t, c10::Storage storage, c10::DispatchKey key) {
  auto r = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), t.dtype());
  r.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return r;
}

// The same memory as a CPU tensor.
at::Tensor to_host(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  if (!t.has_storage() || t.storage().nbytes() == 0)
    return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kCPU));
  auto r = with_storage(t, shared_storage(t, at::kCPU, c10::GetAllocator(at::kCPU)), c10::DispatchKey::CPU);
  if (t.is_conj()) r._set_conj(true);
  if (t.is_neg()) r._set_neg(true);
  return r;
}

// A result of the CPU as a device tensor that owns the same memory; a view of an argument shares its storage.
at::Tensor to_device(const at::Tensor& t, const std::vector<at::Tensor>& arguments, c10::Device d) {
  if (!t.defined() || !t.device().is_cpu()) return t;
  if (t.storage().nbytes())
    for (auto& one : arguments)
      if (one.defined() && one.is_cuda() && one.has_storage() && one.storage().data() == t.storage().data())
        return with_storage(t, one.storage(), c10::DispatchKey::CUDA);
  return with_storage(t, shared_storage(t, d, &allocator), c10::DispatchKey::CUDA);
}

// 3. Operators of their own
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.is_same(source)) return self;
  if (self.is_cuda() != source.is_cuda() && source.numel()) {
    bool in_background = non_blocking && pinned.count((self.is_cuda() ? source : self).storage().data());
    std::string direction = self.is_cuda() ? "host to device" : "device to host";
    report(direction + (in_background ? ", in the background" : ""), source.numel() * source.element_size());
  }
  to_host(self).copy_(to_host(source));
  return self;
}

at::Scalar local_scalar_dense(const at::Tensor& t) {
  report("item", t.element_size());
  return to_host(t).item();
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef sizes, std::optional<c10::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(sizes));
  if (format && *format != c10::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  size_t bytes = (self.storage_offset() + self.numel()) * self.element_size();
  auto* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    c10::DeviceGuard guard(self.device());
    auto fresh = allocator.allocate(bytes);
    if (storage->nbytes()) memcpy(fresh.get(), storage->mutable_data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(fresh));
    storage->set_nbytes(bytes);
  }
  return self;
}

at::Tensor& set_strided(at::Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}
at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  int64_t count = storage.nbytes() / self.element_size();
  return set_strided(self, storage, 0, {count}, {1});
}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_strided(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
at::Tensor& set_empty(at::Tensor& self) {
  return set_strided(self, c10::Storage(c10::Storage::use_byte_size_t(), 0, &allocator, true), 0, {0}, {1});
}

// 4. All other operators: the one of the CPU over the same memory
const std::set<std::string> take_host_indices = {
    "aten::index.Tensor", "aten::index.Tensor_out", "aten::_unsafe_index.Tensor", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_"};
const std::set<std::string> synchronizing = {
    "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim", "aten::_unique2", "aten::bincount",
    "aten::repeat_interleave.Tensor", "aten::histc", "aten::is_nonzero"};
// Without overloads, since structured operators arrive as their variant with an output argument. From the documentation
// of torch.use_deterministic_algorithms: operators of CUDA that raise an error.
const std::set<std::string> not_deterministic = {
    "aten::avg_pool3d_backward", "aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward",
    "aten::max_pool3d_with_indices_backward", "aten::adaptive_max_pool2d_backward", "aten::fractional_max_pool2d_backward",
    "aten::upsample_linear1d_backward", "aten::upsample_bilinear2d_backward", "aten::upsample_bicubic2d_backward",
    "aten::upsample_trilinear3d_backward", "aten::reflection_pad1d_backward", "aten::reflection_pad3d_backward",
    "aten::replication_pad3d_backward", "aten::grid_sampler_2d_backward", "aten::grid_sampler_3d_backward",
    "aten::nll_loss2d_forward", "aten::_ctc_loss_backward", "aten::_embedding_bag_dense_backward", "aten::put_", "aten::histc",
    "aten::kthvalue", "aten::median", "aten::max_unpool2d", "aten::max_unpool3d"};
const std::set<std::string> convolutions = {"aten::convolution", "aten::convolution_backward"};
const std::set<std::string> matmuls = {
    "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addmv", "aten::_addmm_activation"};

bool rounds_to_tf32(const std::string& name) {
  bool convolution = convolutions.count(name), matmul = matmuls.count(name);
  if (!convolution && !matmul) return false;
  auto op = convolution ? at::Float32Op::CONV : at::Float32Op::MATMUL;
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, op) == at::Float32Precision::TF32;
}

// Round to nearest even at 10 bits of mantissa, into new memory.
at::Tensor in_tf32(const at::Tensor& t) {
  if (!t.defined() || t.scalar_type() != at::kFloat) return t;
  auto r = t.clone();
  auto* bits = static_cast<uint32_t*>(r.data_ptr());
  for (int64_t i = 0; i < r.numel(); ++i)
    if ((bits[i] & 0x7f800000u) != 0x7f800000u) bits[i] = (bits[i] + 0xfffu + ((bits[i] >> 13) & 1u)) & ~0x1fffu;
  return r;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto& schema = op.schema();
  const size_t count = schema.arguments().size(), returned = schema.returns().size();
  std::string name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  if (not_deterministic.count(schema.name()) && at::globalContext().deterministicAlgorithms())
    TORCH_CHECK(false, name, " does not have a deterministic implementation, but deterministic algorithms are required");
  const bool rounded = rounds_to_tf32(schema.name());
  // 1. Arguments: the host's view of each tensor; all must be on one device
  std::vector<at::Tensor> given, on_host;
  std::optional<c10::Device> device;
  at::Tensor stranger;
  auto lend = [&](const at::Tensor& t, size_t argument) {
    auto* alias = schema.arguments()[argument].alias_info();
    const bool written = alias && alias->isWrite();
    if (t.defined() && t.is_cuda()) {
      TORCH_CHECK(!device || *device == t.device(), "Expected all tensors to be on the same device, but found at least two "
                  "devices, ", device.value_or(t.device()), " and ", t.device(), "! (", name, ")");
      device = t.device();
    } else if (t.defined() && t.dim() > 0) {
      stranger = t;
    }
    given.push_back(t);
    on_host.push_back(rounded && !written ? in_tf32(to_host(t)) : to_host(t));
    return on_host.back();
  };
  const auto begin = stack->size() - count;
  for (size_t i = 0; i < count; ++i) {
    auto& v = (*stack)[begin + i];
    if (v.isTensor()) {
      v = lend(v.toTensor(), i);
    } else if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : v.toTensorVector()) list.push_back(lend(t, i));
      v = list;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& t : v.toOptionalTensorVector())
        list.push_back(t.has_value() ? std::optional<at::Tensor>(lend(*t, i)) : std::nullopt);
      v = list;
    } else if (v.isDevice() && v.toDevice().is_cuda()) {
      device = v.toDevice();
      v = c10::Device(at::kCPU);
    }
  }
  if (stranger.defined() && device) {
    TORCH_CHECK(take_host_indices.count(name), "Expected all tensors to be on the same device, but found at least two devices, ",
                *device, " and cpu! (", name, ", shape ", stranger.sizes(), ")");
    report("host indices of " + name, 0);
  }
  if (synchronizing.count(name)) report(name, 0);
  // 2. The operator of the CPU
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  // 3. Arguments that were written to may have been resized
  for (size_t k = 0; k < given.size(); ++k)
    if (given[k].defined() && given[k].is_cuda() && on_host[k].sizes() != given[k].sizes()) {
      at::Tensor t = given[k];
      t.resize_(on_host[k].sizes());
      to_host(t).copy_(on_host[k]);
    }
  // 4. Results
  auto result = [&](const at::Tensor& t) -> at::Tensor {
    for (size_t k = 0; k < given.size(); ++k)
      if (on_host[k].is_same(t)) return given[k];
    return to_device(t, given, device.value_or(c10::Device(CUDA, current_device)));
  };
  const auto first = stack->size() - returned;
  for (size_t i = 0; i < returned; ++i) {
    auto& v = (*stack)[first + i];
    if (v.isTensor()) {
      v = result(v.toTensor());
    } else if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : v.toTensorVector()) list.push_back(result(t));
      v = list;
    }
  }
}
}  // namespace

namespace at {
// What autograd asks about the build.
struct CUDAHooks : public CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return visible_devices > 0; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return visible_devices > 0; }
  c10::DeviceIndex deviceCount() const override { return visible_devices; }
  c10::DeviceIndex getCurrentDevice() const override { return ::current_device; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}  // namespace at

static c10::impl::DeviceGuardImplRegistrar registrar(CUDA, new Guard());

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("as_strided", [](const at::Tensor& t, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(t, size, stride, offset);
  });
  m.impl("view", [](const at::Tensor& t, c10::IntArrayRef size) { return at::native::view(t, size); });
  m.impl("_reshape_alias", [](const at::Tensor& t, c10::IntArrayRef size, c10::IntArrayRef stride) {
    return at::native::_reshape_alias(t, size, stride);
  });
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage", TORCH_FN(set_storage));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_strided));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("set_", TORCH_FN(set_empty));
  m.impl("record_stream", [](at::Tensor&, at::Stream) {});
  // Composite operators whose parts differ between devices.
  for (auto* name : {"convolution", "convolution_backward", "native_group_norm", "native_group_norm_backward", "native_layer_norm",
                     "native_layer_norm_backward", "_fused_adamw_", "_fused_adam_", "nonzero", "bincount"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

extern "C" {
void emulated_begin(int visible) {
  visible_devices = visible;
  c10::SetAllocator(CUDA, &allocator, 10);
}
void emulated_on_synchronization(Callback f) { on_synchronization = f; }
void emulated_pin(const void* data) { pinned.insert(data); }
void emulated_capture(int on) { capturing = on; }
void emulated_set_device(int d) { current_device = d; }
int emulated_current_device() { return current_device; }
int emulated_visible() { return visible_devices; }
}
