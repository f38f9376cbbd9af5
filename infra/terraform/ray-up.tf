# Only for infra/ray-cluster.yaml: what `ray up` would otherwise make by itself with far more rights.
variable "ray_up" {
  description = "For `ray up` on EC2: the VPC, the addresses that may come in by SSH, the region. Null: Kubernetes only."
  type        = object({ vpc_id = string, ssh_cidr = string, region = string, account = string })
  default     = null

  validation {
    condition     = var.ray_up == null ? true : try(cidrnetmask(var.ray_up.ssh_cidr), "0.0.0.0") != "0.0.0.0"
    error_message = "ssh_cidr must be a network of yours in IPv4, not everybody."
  }
}

locals {
  machines = toset(var.ray_up == null ? [] : ["head", "worker"])
  ec2      = var.ray_up == null ? "" : "arn:aws:ec2:${var.ray_up.region}"
}

resource "aws_security_group" "ray_up" {
  count       = var.ray_up == null ? 0 : 1
  name        = "${var.name}-ray-up"
  description = "Ray machines: all between themselves, SSH from one network, nothing else in"
  vpc_id      = var.ray_up.vpc_id

  ingress {
    description = "Ray"
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    self        = true
  }
  ingress {
    description = "SSH"
    from_port   = 22
    to_port     = 22
    protocol    = "tcp"
    cidr_blocks = [var.ray_up.ssh_cidr]
  }
  egress {
    description = "object store, registry, API"
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_iam_role" "ray_up" {
  for_each = local.machines
  name     = "${var.name}-ray-up-${each.key}"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

resource "aws_iam_instance_profile" "ray_up" {
  for_each = local.machines
  name     = aws_iam_role.ray_up[each.key].name
  role     = aws_iam_role.ray_up[each.key].name
}

resource "aws_iam_role_policy" "ray_up_bucket" {
  for_each = local.machines
  name     = "bucket"
  role     = aws_iam_role.ray_up[each.key].id
  policy   = local.policies["ray"]
}

# The head's autoscaler starts machines, tags them, and ends those of its own cluster.
resource "aws_iam_role_policy" "ray_up_machines" {
  for_each = setintersection(local.machines, ["head"])
  name     = "machines"
  role     = aws_iam_role.ray_up[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:RunInstances"]
        Resource = ["*"]
      },
      {
        Effect    = "Allow"
        Action    = ["ec2:CreateTags"]
        Resource  = ["${local.ec2}:${var.ray_up.account}:instance/*", "${local.ec2}:${var.ray_up.account}:volume/*"]
        Condition = { StringEquals = { "ec2:CreateAction" = "RunInstances" } }
      },
      {
        Effect    = "Allow"
        Action    = ["ec2:CreateTags", "ec2:TerminateInstances"]
        Resource  = ["${local.ec2}:${var.ray_up.account}:instance/*"]
        Condition = { StringEquals = { "aws:ResourceTag/ray-cluster-name" = "glefld" } }
      },
      {
        Effect   = "Allow"
        Action   = ["iam:PassRole"]
        Resource = [aws_iam_role.ray_up["worker"].arn]
      },
    ]
  })
}

output "ray_up" {
  description = "Values for infra/ray-cluster.yaml."
  value = var.ray_up == null ? null : {
    SecurityGroupIds    = [aws_security_group.ray_up[0].id]
    IamInstanceProfiles = { for name, profile in aws_iam_instance_profile.ray_up : name => profile.name }
  }
}
