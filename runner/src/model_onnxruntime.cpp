#include <onnxruntime_cxx_api.h>

#include <cstdlib>

#include "error.h"
#include "model.h"

namespace edge {
namespace {

// since 1.29 it reports every session to its maker, unless this is set before its first call
Ort::Env make_silent_environment() {
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  return Ort::Env{ORT_LOGGING_LEVEL_WARNING, "edge-runner"};
}

class OnnxRuntime final : public Model {
 public:
  explicit OnnxRuntime(const Bundle& bundle) : logits_(bundle.classes.size()) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(static_cast<int>(bundle.threads));
    options.SetInterOpNumThreads(1);
    // it would quantize layers that were left in float
    options.AddConfigEntry("optimization.disable_specified_optimizers", "WeightBiasQuantization");
    const Bytes& graph = bundle.files.at(bundle.model_files[0]);
    session_ = Ort::Session(environment_, graph.data(), graph.size(), options);
    if (session_.GetInputCount() != 1 || session_.GetOutputCount() != 1) {
      throw Error(bundle.model_files[0] + ": expected one input and one output");
    }
    const Size size = bundle.preprocess.size;
    input_shape_ = {1, 3, static_cast<std::int64_t>(size.height), static_cast<std::int64_t>(size.width)};
    output_shape_ = {1, static_cast<std::int64_t>(logits_.size())};
    const Ort::TypeInfo in = session_.GetInputTypeInfo(0), out = session_.GetOutputTypeInfo(0);
    const auto float32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    if (in.GetTensorTypeAndShapeInfo().GetElementType() != float32 || out.GetTensorTypeAndShapeInfo().GetElementType() != float32 ||
        in.GetTensorTypeAndShapeInfo().GetShape() != input_shape_ || out.GetTensorTypeAndShapeInfo().GetShape() != output_shape_) {
      throw Error(bundle.model_files[0] + " has other inputs or outputs than the manifest says");
    }
    Ort::AllocatorWithDefaultOptions allocator;
    input_name_ = session_.GetInputNameAllocated(0, allocator).get();
    output_name_ = session_.GetOutputNameAllocated(0, allocator).get();
  }

  const std::vector<float>& infer(const std::vector<float>& input) override {
    // the runtime only reads its input, though its interface wants it mutable
    Ort::Value source = Ort::Value::CreateTensor<float>(memory_, const_cast<float*>(input.data()), input.size(), input_shape_.data(),
                                                        input_shape_.size());
    Ort::Value result = Ort::Value::CreateTensor<float>(memory_, logits_.data(), logits_.size(), output_shape_.data(),
                                                        output_shape_.size());
    const char* inputs[] = {input_name_.c_str()};
    const char* outputs[] = {output_name_.c_str()};
    session_.Run(Ort::RunOptions{nullptr}, inputs, &source, 1, outputs, &result, 1);
    return logits_;
  }

 private:
  Ort::Env environment_ = make_silent_environment();
  Ort::Session session_{nullptr};
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::int64_t> input_shape_, output_shape_;
  std::string input_name_, output_name_;
  std::vector<float> logits_;
};

}  // namespace

const char* const kRuntime = "onnxruntime";

std::string runtime_version() { return Ort::GetVersionString(); }

std::unique_ptr<Model> open_model(const Bundle& bundle) { return std::make_unique<OnnxRuntime>(bundle); }

}  // namespace edge
