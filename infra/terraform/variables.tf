variable "bucket" {
  description = "Name of the bucket to make: GLEFLD_ROOT is s3:// and this name."
  type        = string
}

variable "name" {
  description = "Prefix of the roles' names."
  type        = string
  default     = "glefld"
}

variable "oidc_provider_arn" {
  description = "ARN of the Kubernetes cluster's OIDC provider in IAM, whose service accounts may take the roles. Null: no Kubernetes."
  type        = string
  default     = null

  validation {
    condition     = var.oidc_provider_arn == null ? true : can(regex(":oidc-provider/", var.oidc_provider_arn))
    error_message = "This must be the ARN of an OIDC provider: arn:aws:iam::ACCOUNT:oidc-provider/HOST/PATH."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the service accounts (infra/kubernetes)."
  type        = string
  default     = "glefld"
}

variable "datasets" {
  description = "Data sets whose rejected rows (data/<dataset>/_rejects) expire; a lifecycle rule knows prefixes, no patterns."
  type        = set(string)
  default     = ["fld", "deepfashion", "deepfashion-fine", "deepfashion2", "image-folder", "table", "coco", "csv"]
}

variable "rejects_days" {
  description = "Days to keep rejected rows. Their counts by reason stay in the manifest."
  type        = number
  default     = 365
}

variable "old_versions_days" {
  description = "Days to keep what was overwritten or deleted."
  type        = number
  default     = 30
}
