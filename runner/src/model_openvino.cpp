#include <cstring>
#include <openvino/openvino.hpp>

#include "error.h"
#include "model.h"

namespace edge {
namespace {

class OpenVino final : public Model {
 public:
  explicit OpenVino(const Bundle& bundle) : logits_(bundle.classes.size()) {
    if (bundle.model_files.size() != 2) throw Error("manifest.json: OpenVINO's IR has two files");
    const Bytes& graph = bundle.files.at(bundle.model_files[0]);
    const Bytes& weights = bundle.files.at(bundle.model_files[1]);
    ov::Tensor constants(ov::element::u8, {weights.size()});
    if (!weights.empty()) std::memcpy(constants.data(), weights.data(), weights.size());
    const auto model = core_.read_model(std::string(graph.begin(), graph.end()), constants);
    const ov::AnyMap hints = {{"PERFORMANCE_HINT", "LATENCY"},
                              {"NUM_STREAMS", "1"},
                              {"INFERENCE_NUM_THREADS", static_cast<int>(bundle.threads)},
                              {"INFERENCE_PRECISION_HINT", bundle.precision_hint}};
    request_ = core_.compile_model(model, "CPU", hints).create_infer_request();
    input_ = request_.get_input_tensor();
    output_ = request_.get_output_tensor();
    const ov::Shape expected = {1, 3, bundle.preprocess.size.height, bundle.preprocess.size.width};
    if (input_.get_shape() != expected || output_.get_size() != bundle.classes.size() || input_.get_element_type() != ov::element::f32 ||
        output_.get_element_type() != ov::element::f32) {
      throw Error(bundle.model_files[0] + " has other inputs or outputs than the manifest says");
    }
  }

  const std::vector<float>& infer(const std::vector<float>& input) override {
    std::memcpy(input_.data(), input.data(), input.size() * sizeof(float));
    request_.infer();
    std::memcpy(logits_.data(), output_.data(), logits_.size() * sizeof(float));
    return logits_;
  }

 private:
  ov::Core core_;
  ov::InferRequest request_;
  ov::Tensor input_, output_;
  std::vector<float> logits_;
};

}  // namespace

const char* const kRuntime = "openvino";

std::string runtime_version() { return ov::get_openvino_version().buildNumber; }

std::unique_ptr<Model> open_model(const Bundle& bundle) { return std::make_unique<OpenVino>(bundle); }

}  // namespace edge
